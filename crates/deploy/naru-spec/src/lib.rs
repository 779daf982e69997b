//! naru-spec
