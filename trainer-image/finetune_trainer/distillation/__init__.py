"""What a student is compared with its teacher by: pure losses, and the teacher itself."""
