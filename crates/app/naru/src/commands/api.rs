//! `naru api tiers`: which kinds of the Kubernetes API are acted on, which are only kept, and what is refused.

use crate::error::Result;
use kube_api::kinds::{Tier, builtin};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

/// What will not be, and what to use instead.
const REFUSED: &[(&str, &str)] = &[
    ("aggregated API servers (APIService)", "declare a CustomResourceDefinition"),
    (
        "conversion webhooks of CustomResourceDefinitions",
        "versions are converted by name only: strategy None",
    ),
    ("CSI drivers and in-tree cloud volumes", "volumes of the class local-path, emptyDir, hostPath"),
    ("cloud load balancers", "NodePort, or the gateway with HTTPRoute or Ingress"),
    ("answers in protobuf and CBOR", "clients take JSON as well"),
];

pub fn tiers(as_json: bool) -> Result<ExitCode> {
    let mut rows: Vec<(String, &str, &str, &str)> = builtin()
        .iter()
        .map(|it| {
            let tier = if it.tier == Tier::Active { "active" } else { "stored" };
            (it.api_version(), it.kind.as_str(), it.plural.as_str(), tier)
        })
        .collect();
    rows.sort_by(|a, b| (a.3, &a.0, a.1).cmp(&(b.3, &b.0, b.1)));
    let mut out = std::io::stdout();
    if as_json {
        let kinds: Vec<_> = rows
            .iter()
            .map(|(version, kind, plural, tier)| {
                json!({"apiVersion": version, "kind": kind, "resource": plural, "tier": tier})
            })
            .collect();
        let refused: Vec<_> =
            REFUSED.iter().map(|(what, instead)| json!({"what": what, "instead": instead})).collect();
        writeln!(out, "{:#}", json!({"kinds": kinds, "refused": refused}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = |of: fn(&(String, &str, &str, &str)) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let (versions, kinds) = (width(|it| it.0.len()), width(|it| it.1.len()));
    for (tier, meaning) in [
        ("active", "Naru makes it true: controllers, the node or the API act on it"),
        ("stored", "kept, checked and served; nothing acts on it"),
    ] {
        writeln!(out, "{} - {meaning}", tier.to_uppercase())?;
        for (version, kind, plural, _) in rows.iter().filter(|it| it.3 == tier) {
            writeln!(out, "  {version:versions$}  {kind:kinds$}  {plural}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "REFUSED - and what to use instead")?;
    for (what, instead) in REFUSED {
        writeln!(out, "  {what}: {instead}")?;
    }
    writeln!(out, "\nA field that is stored but not acted on is answered with a warning that names it.")?;
    Ok(ExitCode::SUCCESS)
}
