"""What a Mixture-of-Modules is made of; the model class itself is `compress.architectures.mixture_of_modules`."""
