"""The HTTP endpoint. `prism serve` runs it; `create_app` is the app itself."""
