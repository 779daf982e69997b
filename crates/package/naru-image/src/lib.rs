//! naru-image
