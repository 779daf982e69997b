//! Seccomp profiles of the OCI runtime specification (`linux.seccomp`, which is also Docker's and the kubelet's
//! form) as filters for the kernel.
//!
//! One filter knows two outcomes, what matches and what does not, and a profile may name many. So there is one
//! filter per outcome, and the kernel takes the strictest answer of all (seccomp(2), where the last one installed
//! gives the number of an error): the first lets through what the profile names at all and answers everything else
//! with its default; each further one gives its calls their own outcome and lets the rest pass.

use std::collections::BTreeMap;
use std::str::FromStr;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde_json::Value;
use syscalls::Sysno;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the seccomp profile has no `{0}`, or it is not understood")]
    Field(&'static str),
    #[error(
        "the seccomp action `{0}` cannot be honoured; write SCMP_ACT_ERRNO, _KILL_PROCESS, _LOG, _TRAP or _ALLOW"
    )]
    Action(String),
    #[error("the seccomp comparison `{0}` is not known")]
    Operator(String),
    #[error("the seccomp profile cannot be compiled: {0}")]
    Compile(#[from] seccompiler::BackendError),
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Filters to be installed in this order. Names of calls that this machine does not have mean nothing, as
/// everywhere: profiles are written for all machines at once.
pub fn compile(profile: &Value) -> Result<Vec<BpfProgram>, ProfileError> {
    let default_errno = profile["defaultErrnoRet"].as_u64();
    let default = action(&profile["defaultAction"], default_errno)?;
    // In the profile's order, which decides about nothing, but makes the same profile the same filters.
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    let mut named: Rules = BTreeMap::new();
    for entry in profile["syscalls"].as_array().into_iter().flatten() {
        let wanted = action(&entry["action"], entry["errnoRet"].as_u64())?;
        let conditions = conditions(entry)?;
        let names = entry["names"].as_array().ok_or(ProfileError::Field("syscalls[].names"))?;
        if wanted == default {
            continue;
        }
        let at = by_action.iter().position(|it| it.0 == wanted).unwrap_or_else(|| {
            by_action.push((wanted.clone(), Rules::new()));
            by_action.len() - 1
        });
        for name in names.iter().filter_map(Value::as_str) {
            let Ok(number) = Sysno::from_str(name) else { continue };
            let number = i64::from(number.id());
            for rules in [&mut named, &mut by_action[at].1] {
                add(rules, number, conditions.as_ref())?;
            }
        }
    }
    let architecture: seccompiler::TargetArch =
        std::env::consts::ARCH.try_into().map_err(|_| ProfileError::Field("architectures"))?;
    let filter = |rules: Rules, otherwise, matched| -> Result<BpfProgram, ProfileError> {
        Ok(BpfProgram::try_from(SeccompFilter::new(rules, otherwise, matched, architecture)?)?)
    };
    let mut filters = Vec::new();
    if default != SeccompAction::Allow {
        filters.push(filter(named, default, SeccompAction::Allow)?);
    }
    for (wanted, rules) in by_action {
        if wanted != SeccompAction::Allow && !rules.is_empty() {
            filters.push(filter(rules, SeccompAction::Allow, wanted)?);
        }
    }
    Ok(filters)
}

/// A call without conditions always matches, whatever else is said about it.
fn add(
    rules: &mut Rules,
    number: i64,
    conditions: Option<&Vec<SeccompCondition>>,
) -> Result<(), ProfileError> {
    match (rules.get_mut(&number), conditions) {
        (Some(known), _) if known.is_empty() => {}
        (_, None) => {
            rules.insert(number, Vec::new());
        }
        (_, Some(conditions)) => {
            rules.entry(number).or_default().push(SeccompRule::new(conditions.clone())?);
        }
    }
    Ok(())
}

fn action(value: &Value, errno: Option<u64>) -> Result<SeccompAction, ProfileError> {
    let name = value.as_str().ok_or(ProfileError::Field("defaultAction or action"))?;
    let errno = errno.map_or(libc::EPERM as u32, |it| it as u32);
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno),
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

fn conditions(entry: &Value) -> Result<Option<Vec<SeccompCondition>>, ProfileError> {
    let Some(list) = entry["args"].as_array().filter(|it| !it.is_empty()) else { return Ok(None) };
    let mut conditions = Vec::new();
    for it in list {
        let index = it["index"].as_u64().and_then(|it| u8::try_from(it).ok());
        let index = index.ok_or(ProfileError::Field("syscalls[].args[].index"))?;
        let value = it["value"].as_u64().ok_or(ProfileError::Field("syscalls[].args[].value"))?;
        let other = it["valueTwo"].as_u64().unwrap_or(0);
        let name = it["op"].as_str().unwrap_or_default();
        let (operator, value) = match name {
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, value),
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, value),
            // The mask comes first and what must be left of the argument second.
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(value), other),
            other => return Err(ProfileError::Operator(other.to_owned())),
        };
        conditions.push(SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)?);
    }
    Ok(Some(conditions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_outcome_becomes_a_filter_and_unknown_calls_mean_nothing() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
        assert_eq!(compile(&profile).unwrap().len(), 2, "the permissions, and ENOSYS for clone3");
        let open = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS"}]});
        assert_eq!(compile(&open).unwrap().len(), 1);
        assert!(compile(&json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap().is_empty());
        for bad in [
            json!({}),
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}),
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]}),
        ] {
            assert!(compile(&bad).is_err(), "{bad}");
        }
    }
}
