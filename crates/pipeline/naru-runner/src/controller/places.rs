//! A run's places in concurrency groups: asked for, written down before anybody acts on them, given up.

use super::driver::Driver;
use super::groups::{Member, Standing};
use naru_objects::{GroupPlace, JobPhase};
use naru_plan::{Concurrency, EvaluateError, Job};
use serde_json::Value;

/// Why a place in a group cannot be had.
pub enum Placing {
    Api(naru_client::Error),
    Text(EvaluateError),
}

impl Driver {
    /// Asks for the place in a concurrency group, and writes it down before anybody acts on it.
    pub(super) async fn place(
        &mut self,
        concurrency: &Concurrency,
        at: usize,
        contexts: &Value,
        member: &str,
    ) -> Result<Standing, Placing> {
        let evaluator = self.plans[at].dialect.evaluator;
        let group = evaluator.text(&concurrency.group, contexts).map_err(Placing::Text)?;
        let cancel = evaluator.text(&concurrency.cancel_in_progress, contexts).map_err(Placing::Text)?;
        if group.is_empty() {
            return Ok(Standing::Holds);
        }
        let me: Member = (self.run.metadata.name.clone(), member.to_owned());
        let standing = self.shared.groups.ask(&self.run.spec.repository, &group, &me, cancel == "true");
        let place = GroupPlace { group, member: member.to_owned(), holds: standing != Standing::Waits };
        if !self.status.groups.contains(&place) {
            self.status.groups.retain(|it| it.member != place.member || it.group != place.group);
            self.status.groups.push(place);
            self.write().await.map_err(Placing::Api)?;
        }
        Ok(standing)
    }

    /// Gives the places of jobs that have ended to others, and stops jobs whose place a newcomer has taken.
    pub(super) async fn look_at_places(&mut self, at: usize) -> Result<(), naru_client::Error> {
        let ended: Vec<String> =
            self.status.jobs.iter().filter(|it| it.phase.is_final()).map(|it| it.key.clone()).collect();
        self.leave_groups(|it| ended.contains(&it.member));
        for index in 0..self.plans[at].plan.jobs.len() {
            let key = &self.plans[at].keys[index];
            let holds = self.status.groups.iter().any(|it| it.member == *key && it.holds);
            if !holds || self.job(key).is_none_or(|it| it.phase != JobPhase::Running) {
                continue;
            }
            let key = key.clone();
            let planned = &self.plans[at];
            let job = planned.plan.jobs[index].clone();
            let Some(concurrency) = &job.concurrency else { continue };
            let contexts = Value::Object(self.contexts_of(planned, &job, &self.views(planned)));
            match self.place(concurrency, at, &contexts, &key).await {
                Ok(Standing::Displaced) => {}
                Err(Placing::Api(error)) => return Err(error),
                _ => continue,
            }
            // A call ends when the jobs that it brought in have.
            let within = |it: &Job| it.key == job.key || it.key.starts_with(&format!("{}/", job.key));
            for other in 0..self.plans[at].plan.jobs.len() {
                let planned = &self.plans[at];
                let is_call = other == index && job.call.is_some();
                let over = self.job(&planned.keys[other]).is_none_or(|it| it.phase.is_final());
                if within(&planned.plan.jobs[other]) && !is_call && !over {
                    self.cancel(at, other, "a newer job of its concurrency group took its place").await?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn leave_groups(&mut self, of: impl Fn(&GroupPlace) -> bool) {
        let name = self.run.metadata.name.clone();
        for it in self.status.groups.iter().filter(|it| of(it)) {
            self.shared.groups.leave(
                &self.run.spec.repository,
                &it.group,
                &(name.clone(), it.member.clone()),
            );
        }
        self.status.groups.retain(|it| !of(it));
    }
}
