"""The operator's side over HTTP: a web console, an OpenAI-compatible API and figures for Prometheus.

One process with one MQTT connection; it reaches devices only through the broker.
"""
