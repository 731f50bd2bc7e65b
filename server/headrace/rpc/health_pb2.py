"""Generated from protos/headrace/rpc/health.proto by scripts/generate_protos.py; do not edit."""

from headrace.rpc import pool

DESCRIPTOR = pool.define(
    globals(),
    b'\n\x19headrace/rpc/health.proto\x12\x0egrpc.health.v1".\n\x12HealthCheckReques'
    b't\x12\x18\n\x07service\x18\x01 \x01(\tR\x07service"\xb1\x01\n\x13HealthCheckResponse\x12I\n\x06status\x18\x01 '
    b'\x01(\x0e21.grpc.health.v1.HealthCheckResponse.ServingStatusR\x06status"O'
    b'\n\rServingStatus\x12\x0b\n\x07UNKNOWN\x10\x00\x12\x0b\n\x07SERVING\x10\x01\x12\x0f\n\x0bNOT_SERVING\x10\x02\x12\x13\n\x0fSE'
    b'RVICE_UNKNOWN\x10\x03"\x13\n\x11HealthListRequest"\xc4\x01\n\x12HealthListResponse\x12L\n\x08s'
    b'tatuses\x18\x01 \x03(\x0b20.grpc.health.v1.HealthListResponse.StatusesEntryR'
    b'\x08statuses\x1a`\n\rStatusesEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x129\n\x05value\x18\x02 \x01(\x0b2#.gr'
    b'pc.health.v1.HealthCheckResponseR\x05value:\x028\x012\xfd\x01\n\x06Health\x12P\n\x05Check\x12'
    b'".grpc.health.v1.HealthCheckRequest\x1a#.grpc.health.v1.HealthCheck'
    b'Response\x12M\n\x04List\x12!.grpc.health.v1.HealthListRequest\x1a".grpc.healt'
    b'h.v1.HealthListResponse\x12R\n\x05Watch\x12".grpc.health.v1.HealthCheckReq'
    b'uest\x1a#.grpc.health.v1.HealthCheckResponse0\x01b\x06proto3'
)
