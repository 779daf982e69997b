//! naru-builder
