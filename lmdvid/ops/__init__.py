"""Operations with a faster form on some devices, each beside the plain one that defines it."""
