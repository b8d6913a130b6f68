"""mmjax: mixed-modal foundation models in JAX."""
