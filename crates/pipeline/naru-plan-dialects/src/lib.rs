//! naru-plan-dialects
