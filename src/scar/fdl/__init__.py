"""The Functions Definition Language: text to typed values, or every fault with its place."""
