"""Data brought into form: images into one archive, images into latents, and a look at them."""
