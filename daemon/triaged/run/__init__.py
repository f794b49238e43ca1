# SPDX-License-Identifier: Apache-2.0
"""`triagectl run`: a command under observation, and what of its failures the machine is to blame for."""
