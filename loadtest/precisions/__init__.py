"""The models of models/ in lower precisions: made by `headrace quantize`, measured, and told in the models' cards."""
