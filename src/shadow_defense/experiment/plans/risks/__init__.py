"""The seven risks that the article names, each with an experiment that ends in a number."""
