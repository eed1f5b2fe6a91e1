"""The contract: typed models of FineTuneJob and what is generated from them. Imports neither kopf nor torch."""
