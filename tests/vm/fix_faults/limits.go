// SPDX-License-Identifier: Apache-2.0

// Package limits has one test for each limit that a fix raises: it fails while the limit is low and passes when it is not.
package limits
