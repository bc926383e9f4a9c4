"""Training of the tiny SaRDinE example: data, tokenizer, model, training, evaluation."""
