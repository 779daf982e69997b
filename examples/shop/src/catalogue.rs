//! What the shop sells, and how it answers.

pub const VERSION: &str = "v1";

/// Every n-th order fails; 0 means that none does.
pub const FAIL_EVERY: u64 = 0;

const ITEMS: &[(&str, u32)] = &[("tea", 450), ("coffee", 520), ("rice cake", 380)];

/// The list of items with their prices in cents, as JSON.
pub fn items() -> String {
    let items: Vec<String> =
        ITEMS.iter().map(|(name, cents)| format!(r#"{{"name":"{name}","cents":{cents}}}"#)).collect();
    format!(r#"{{"version":"{VERSION}","items":[{}]}}"#, items.join(","))
}

/// Whether the order with this number fails.
pub fn fails(number: u64) -> bool {
    FAIL_EVERY > 0 && number % FAIL_EVERY == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_a_price() {
        assert!(ITEMS.iter().all(|(_, cents)| *cents > 0));
    }

    #[test]
    fn the_list_names_the_version() {
        assert!(items().contains(VERSION));
    }
}
