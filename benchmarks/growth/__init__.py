"""How cost grows, as exponents: one module a law, each a list of rows that `law.py` fits.

cached_tokens  programs  streams  forks  schemas  decoding      what is measured, at five sizes or more
law.py                                                          a row, its exponent, its verdict
measure.py                                                      work counted, processor time, bytes
stand_ins.py                                                    a scheduler and a backend without a model
__main__.py  plot.py                                            the table, JSON, the picture
"""
