"""A plugin for vLLM and SGLang: prompt log-probabilities that include the probability of a token boundary."""
