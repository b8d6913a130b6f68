"""Pictures to discrete codes or latents and back."""
