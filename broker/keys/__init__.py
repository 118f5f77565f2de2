# SPDX-License-Identifier: Apache-2.0
"""Authority keys in a device or a cloud service, beside those of `certs/keys.py` that this process holds itself.

`device.py` has the private keys that `cryptography` signs with and the device behind them; `pkcs11.py` and `aws_kms.py`
are the two kinds of devices; `keyring.py` calls whichever there is on threads of its own (`pool.py`), and knows whether
it answers; `settings.py` reads the configuration.
"""
