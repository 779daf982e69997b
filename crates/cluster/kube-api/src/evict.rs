//! `POST pods/NAME/eviction`: a deletion that asks the disruption budgets first.

use axum::body::Body;
use axum::response::Response;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::DeleteOptions;
use kube_kinds::{Failure, int, is_deleting, list, name, table, text, time};
use kube_objects::{Door, Mode, Writer, set_condition};
use serde_json::{Value, json};

use crate::request::Call;
use crate::{answer, body};

/// How long a client that was refused should wait, seconds.
const RETRY_SECONDS: u64 = 10;
/// Between two evictions that take from one budget.
const ATTEMPTS_MAX: usize = 32;

pub(crate) async fn evict(call: Call, body: Body) -> Result<Response, Failure> {
    let eviction = body::optional(&call.headers, body).await?;
    let given = text(&eviction, "/metadata/name");
    if !given.is_empty() && given != call.name() {
        return Err(Failure::bad_request(format!(
            "name in URL does not match name in Eviction object: {given:?}"
        )));
    }
    let mut options = DeleteOptions::parse(&eviction["deleteOptions"])?;
    let writer = writer(&call, &eviction)?;
    let pod = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let is_free =
        ["Succeeded", "Failed", "Pending"].contains(&text(&pod, "/status/phase")) || is_deleting(&pod);
    if !is_free {
        take_from_budget(&call, &pod, &writer).await?;
        // Whoever looks at the pod later sees why it went.
        let mark = |pod: &mut Value| {
            set_condition(
                pod,
                json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting", "lastTransitionTime": time::format(jiff::Timestamp::now())}),
            );
        };
        let objects = call.api.objects();
        objects.edit(&call.kind, call.namespace(), call.name(), Door::Status, &writer, mark).await?;
        options.resource_version = None;
    }
    call.api.objects().delete(&call.kind, call.namespace(), call.name(), &options, &writer).await?;
    Ok(answer::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn writer(call: &Call, eviction: &Value) -> Result<Writer, Failure> {
    let mut writer = call.writer()?;
    if list(eviction, "/deleteOptions/dryRun").iter().any(|it| it == "All") {
        writer.mode = Mode::DryRun;
    }
    Ok(writer)
}

/// Takes one disruption from the budget that covers the pod, if there is one.
async fn take_from_budget(call: &Call, pod: &Value, writer: &Writer) -> Result<(), Failure> {
    let kind = table::of("policy", "PodDisruptionBudget").expect("the table of kinds has budgets");
    let objects = call.api.objects();
    for _ in 0..ATTEMPTS_MAX {
        let covers = |budget: &Value| {
            LabelSelector::from_object(&budget["spec"]["selector"]).is_some_and(|it| it.matches(pod))
        };
        let all = objects.list(kind, Some(call.namespace()), &LabelSelector::default());
        let mut covering = all.into_iter().filter(|it| covers(it));
        let Some(budget) = covering.next() else { return Ok(()) };
        if covering.next().is_some() {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Failure::new(500, "InternalError", why));
        }
        if int(&budget, "/status/observedGeneration") < int(&budget, "/metadata/generation") {
            let why =
                format!("The disruption budget {} is still being processed by the server.", name(&budget));
            return Err(refused(&why));
        }
        let (healthy, desired) =
            (int(&budget, "/status/currentHealthy"), int(&budget, "/status/desiredHealthy"));
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if !is_ready(pod) && (always || (healthy >= desired && desired > 0)) {
            return Ok(());
        }
        if int(&budget, "/status/disruptionsAllowed") <= 0 {
            return Err(refused(&format!(
                "The disruption budget {} needs {desired} healthy pods and has {healthy} currently",
                name(&budget)
            )));
        }
        let mut next = (*budget).clone();
        next["status"]["disruptionsAllowed"] = json!(int(&budget, "/status/disruptionsAllowed") - 1);
        next["status"]["disruptedPods"][call.name()] = json!(time::format(jiff::Timestamp::now()));
        let written =
            objects.replace(kind, call.namespace(), name(&budget), next, Door::Status, writer).await;
        match written {
            // Another eviction was faster.
            Err(failure) if failure.is_conflict() => {}
            other => return other.map(drop),
        }
    }
    Err(Failure::modified(kind, call.name()))
}

fn is_ready(pod: &Value) -> bool {
    list(pod, "/status/conditions").iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

fn refused(why: &str) -> Failure {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut failure = Failure::new(429, "TooManyRequests", message);
    failure.details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}],
        "retryAfterSeconds": RETRY_SECONDS});
    failure
}
