"""Parts of a model that are run one after the other, float beside quantized, and the values between them."""
