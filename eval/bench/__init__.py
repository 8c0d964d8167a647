"""How fast is it, beside what else one could pick? Ratios within one run; nothing here is asserted in a test."""
