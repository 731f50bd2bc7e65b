"""Models to measure speed with: the shapes of ResNet-50 and BERT-base, with random weights."""
