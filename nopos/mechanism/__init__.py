"""The algorithm of the no-position model, one stage a file, in its own order.

1. `count`: layer 0's attention to BOS is diluted by every token that follows, so it counts them.
2. `layer_0_table`: all that layer 0 writes can be looked up by token and position.
3. `position_code`: what layer 0 leaves of a position is a smooth curve in a plane.
4. `decoded_position`: layer 1's keys put every position somewhere on that curve, and the count moves them.
5. `kernel`: layer 1's scores are a function of distance.
6. `decode`: the previous token is got out of a blend that holds more of the current one.

No stage knows a later one. Layers are arguments; their defaults are the two of the notebook's model.
"""
