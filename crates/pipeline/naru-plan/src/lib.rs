//! naru-plan
