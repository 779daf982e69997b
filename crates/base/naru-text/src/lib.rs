//! naru-text
