//! naru-dora
