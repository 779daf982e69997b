//! naru-runner
