"""Measuring a model: its speed (`edged bench`) and what quantization cost (`edged eval`), also against llama.cpp."""
