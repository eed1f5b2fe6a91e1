"""What s3:// and https:// URIs name: downloaded before anything is read, and the model uploaded at the end."""
