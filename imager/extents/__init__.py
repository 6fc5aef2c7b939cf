"""Which bytes of a volume matter: allocated ranges per filesystem, whole as the fall-back.

A map that leaves out a used block loses data without a word. So every reader here confirms what
it found against a second source within the filesystem, and gives up (the volume is then read
whole, with the reason) at the first thing it does not know or that does not add up. Giving up
costs time and room; it is never wrong.
"""
