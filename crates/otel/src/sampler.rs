//! Which flows are traced, as OpenTelemetry's built-in samplers decide it.

use nowconnect_settings::{Sampler, TracesConfig};

/// A sampler with its share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    sampler: Sampler,
    /// Trace ids below it are taken: the share of 2^63.
    bound: u64,
}

impl Sampling {
    pub(crate) fn new(config: &TracesConfig) -> Self {
        Self {
            sampler: config.sampler,
            bound: (config.ratio * (1u64 << 63) as f64) as u64,
        }
    }

    #[cfg(test)]
    pub(crate) fn all() -> Self {
        Self {
            sampler: Sampler::AlwaysOn,
            bound: 0,
        }
    }

    /// `followed`: another process records the trace.
    pub(crate) fn wants(&self, trace_id: &[u8; 16], followed: bool) -> bool {
        match self.sampler {
            Sampler::AlwaysOn | Sampler::ParentAlwaysOn => true,
            Sampler::AlwaysOff => false,
            Sampler::ParentAlwaysOff => followed,
            Sampler::Ratio => self.takes(trace_id),
            Sampler::ParentRatio => followed || self.takes(trace_id),
        }
    }

    /// By 63 of the bits that are surely random, as the SDKs do, so that all processes of one ratio
    /// take the same traces.
    fn takes(&self, trace_id: &[u8; 16]) -> bool {
        u128::from_be_bytes(*trace_id) as u64 >> 1 < self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(sampler: Sampler, ratio: f64) -> Sampling {
        Sampling {
            sampler,
            bound: (ratio * (1u64 << 63) as f64) as u64,
        }
    }

    #[test]
    fn samplers_are_those_of_the_specification() {
        for (sampler, own, followed) in [
            (Sampler::AlwaysOn, true, true),
            (Sampler::AlwaysOff, false, false),
            (Sampler::Ratio, false, false),
            (Sampler::ParentAlwaysOn, true, true),
            (Sampler::ParentAlwaysOff, false, true),
            (Sampler::ParentRatio, false, true),
        ] {
            let sampling = sampling(sampler, 0.0);
            assert_eq!(sampling.wants(&[7; 16], false), own, "{sampler}");
            assert_eq!(sampling.wants(&[7; 16], true), followed, "{sampler}");
        }
    }

    #[test]
    fn a_ratio_takes_its_share() {
        let [none, some, all] = [0.0, 0.25, 1.0].map(|ratio| sampling(Sampler::Ratio, ratio));
        let ids = (0..1000u64).map(|n| {
            let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            u128::from(spread).to_be_bytes()
        });
        let share = |s: Sampling| ids.clone().filter(|id| s.wants(id, false)).count();
        assert_eq!([share(none), share(all)], [0, 1000]);
        assert!((240..260).contains(&share(some)), "{}", share(some));
        assert!(all.wants(&[0xff; 16], false));
    }
}
