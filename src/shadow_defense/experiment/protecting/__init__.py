"""`shadow-defense protect`: a data set in, the same data set protected out, with a certificate."""
