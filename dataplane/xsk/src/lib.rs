//! AF_XDP for Tieline: the only crate with `unsafe`.
