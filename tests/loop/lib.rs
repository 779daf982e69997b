//! The integration tests of the whole loop are in `tests/loop`; this file is empty because cargo wants a target.
