"""``utmp-client``: Flower's SuperNode and one worker beside it; all that leans on its private code.

`tests/client/test_flower_contract.py` names each private part of Flower that this project uses.
"""
