# SPDX-License-Identifier: Apache-2.0
"""Machine or code: ties what the kernel told of a run to what its output says failed, and reports it."""
