//! naru-series
