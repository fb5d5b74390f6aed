"""What a review classifier reads: the encoders, how they are pooled, and a faster dropout."""
