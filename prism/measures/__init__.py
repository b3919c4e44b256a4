"""Pure functions on numbers: agreement, calibration, intervals and corrections."""
