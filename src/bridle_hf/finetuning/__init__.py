"""Fine-tuning for classification on transformers' `Trainer`, fold by fold."""
