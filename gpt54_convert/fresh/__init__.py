"""Models of the GPT-5.4 family with random weights: `options.Init` says which, `weights` draws them."""
