//! What is undefined on a GPU is an error here.
