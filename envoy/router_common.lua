-- What both model routers share. The control plane joins three pieces into one inline source for Envoy's Lua filter:
-- the pins (`local PINNED = [==[...]==]`) and what operators want of traffic (`local TRAFFIC = [==[...]==]`) with whether
-- somebody reads which model each request was for (`local NAMED = true`) and what share of each model's requests is
-- observed (`local OBSERVED = 0.01`, or nil), this file and router_traffic.lua, and router_grpc.lua or router_rest.lua.
--
-- A model router only says where a request goes: it writes the cluster's name into a header, which the route reads
-- (`cluster_header`). It knows no list of models: an unknown name is an unknown cluster, and the listener's
-- local_reply_config turns that into TF Serving's own NOT_FOUND. So nothing here grows with the number of models but
-- with that of those that are pinned or have a policy, and a request's cost doesn't grow with them either.

local byte, char, find, format, gsub, lower = string.byte, string.char, string.find, string.format, string.gsub, string.lower
local gmatch, match, rep, sub = string.gmatch, string.match, string.rep, string.sub

local CLUSTER = "x-modelplane-cluster" -- the route's cluster_header
local NOT_FOUND_TEXT = "x-modelplane-not-found" -- what to say if there is no such cluster; absent: Latest(CLUSTER)
local MODEL_TEXT = "x-modelplane-model" -- how messages name the model; absent: the cluster's name reads the same
local LABELLED = "x-modelplane-label" -- present: an unknown cluster is an unknown label to the client

-- Longer names than this don't fit an error message that a gRPC client will still accept (8 KiB of headers, three bytes
-- for a byte that must be escaped).
local LONGEST_NAME = 1024

-- The version that a request which names none gets, for the models that need it told, as a decimal string: a version
-- is an int64, and a Lua number is exact only up to 2^53. The pins come as text because LuaJIT refuses a table of
-- 20,000 constants.
local PINS = {}
for name, version in gmatch(PINNED, "(%S+) (%d+)\n") do
  PINS[name] = version
end

local function escape(character)
  return format("%%%02X", byte(character))
end

-- A model's name as the control plane spells it in cluster names (names.py): `@` and `%` never stand for themselves,
-- so no client can name one of Envoy's own clusters.
local function encode_name(name)
  if find(name, "[^%w_.:/+~-]") then
    return (gsub(name, "[^%w_.:/+~-]", escape))
  end
  return name
end

-- The reverse.
local function decode(text)
  return (gsub(text, "%%(%x%x)", function(hex)
    return char(tonumber(hex, 16))
  end))
end

-- Text from a client, fit for a header's value.
local function printable(text)
  return (gsub(text, "%c", "?"))
end

-- What the access log and the traces say of a request, where somebody wants them (NAMED).
local function name_for_log(headers, name, version)
  headers:replace("x-modelplane-logged-model", printable(name))
  if version then
    headers:replace("x-modelplane-logged-version", version)
  end
end

-- Digits as TF Serving would print them: 007 is version 7.
local function canonical_version(digits)
  return match(digits, "^0*(%d+)$")
end
