//! What an Envoy gateway speaks to an endpoint picker: the part of its external processing API that we use.
//!
//! Modules are nested as the packages are, because generated code names its neighbours that way.

#![expect(
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code is not written for reading"
)]

pub mod config {
    pub mod core {
        pub mod v3 {
            tonic::include_proto!("envoy.config.core.v3");
        }
    }
}

pub mod r#type {
    pub mod v3 {
        tonic::include_proto!("envoy.r#type.v3");
    }
}

pub mod service {
    pub mod ext_proc {
        pub mod v3 {
            tonic::include_proto!("envoy.service.ext_proc.v3");
        }
    }
}
