//! Writes metrics whose values are looked up when they are asked for, under one name or under two.

use crate::chat::{Histogram, ModelState, Models, ServedModel};
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use std::fmt;

/// A scrape under way.
pub(super) struct Exposition<'a> {
    encoder: DescriptorEncoder<'a>,
    models: Models,
    with_vllm: bool,
}

impl<'a> Exposition<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>, models: Models, with_vllm: bool) -> Self {
        Self { encoder, models, with_vllm }
    }

    /// The name of each family with that of its label for the model.
    fn names<'n>(
        &self,
        native: &'n str,
        vllm: Option<&'n str>,
    ) -> impl Iterator<Item = (&'n str, &'static str)> + use<'n> {
        let vllm = vllm.filter(|_| self.with_vllm).map(|name| (name, "model_name"));
        [(native, "model")].into_iter().chain(vllm)
    }

    /// One for each model that has a value.
    pub(super) fn gauges(
        &mut self,
        native: &str,
        vllm: Option<&str>,
        help: &str,
        value: impl Fn(&ServedModel) -> Option<f64>,
    ) -> fmt::Result {
        let values = look_up(&self.models, value);
        for (name, label) in self.names(native, vllm) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (model, value) in &values {
                family.encode_family(&[(label, *model)])?.encode_gauge(value)?;
            }
        }
        Ok(())
    }

    /// The same of what only grows.
    pub(super) fn counters(
        &mut self,
        native: &str,
        vllm: Option<&str>,
        help: &str,
        value: impl Fn(&ServedModel) -> Option<f64>,
    ) -> fmt::Result {
        let values = look_up(&self.models, value);
        for (name, label) in self.names(native, vllm) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, value) in &values {
                let labels = [(label, *model)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, f64>(value, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn histograms(
        &mut self,
        native: &str,
        vllm: &str,
        help: &str,
        pick: impl Fn(&ServedModel) -> &Histogram,
    ) -> fmt::Result {
        let values = look_up(&self.models, |model| Some(pick(model).read()));
        for (name, label) in self.names(native, Some(vllm)) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (model, counts) in &values {
                let labels = [(label, *model)];
                let mut encoder = family.encode_family(&labels)?;
                encoder.encode_histogram::<NoLabelSet>(counts.sum, counts.count(), &counts.buckets, None)?;
            }
        }
        Ok(())
    }

    /// How many replies of each model ended in which way.
    pub(super) fn ends(&mut self, native: &str, vllm: &str, help: &str) -> fmt::Result {
        let values = look_up(&self.models, |model| Some(model.request_stats().ends()));
        for (name, label) in self.names(native, Some(vllm)) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            let reason = if label == "model" { "finish_reason" } else { "finished_reason" };
            for (model, ends) in &values {
                for (end, count) in ends {
                    let labels = [(label, *model), (reason, *end)];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(count, None)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn states(&mut self, name: &str, help: &str, states: &[ModelState]) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for model in self.models.iter() {
            let (current, _) = model.state();
            for state in states {
                let labels = [("model", model.name()), ("state", state.name())];
                family.encode_family(&labels)?.encode_gauge(&i64::from(*state == current))?;
            }
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn gauge_with(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1], value: f64) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_family(labels)?.encode_gauge(&value)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&value, None)
    }
}

/// What each model has a value of, with its name: looked up once, so that two names tell the same.
fn look_up<T>(models: &Models, value: impl Fn(&ServedModel) -> Option<T>) -> Vec<(&str, T)> {
    models.iter().filter_map(|model| Some((model.name(), value(model)?))).collect()
}
