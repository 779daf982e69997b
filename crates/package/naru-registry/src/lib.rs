//! naru-registry
